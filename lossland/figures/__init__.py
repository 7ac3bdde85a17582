"""Pictures of results in one house style: stability maps, curves of loss and sharpness. The only user of matplotlib.

`plot_*(ax, runs)` draws into an axes of the caller's; `*_figure(runs)` composes a whole figure, `save` writes it. No
window is opened, and no matplotlib setting is left changed.
"""

from lossland.figures.curves import curves_figure, plot_loss, plot_sharpness
from lossland.figures.late_training import late_training_figure
from lossland.figures.maps import plot_stability_map, stability_map_figure
from lossland.figures.output import save, save_numbers
from lossland.figures.phases import phase_diagram_figure, plot_phase_diagram
from lossland.figures.planes import boundary_figure, plot_boundary, save_frames
from lossland.figures.reading import boundaries, choose_values, curves
from lossland.figures.slices import line_figure, plane_figure, plot_line, plot_plane

__all__ = [
    "boundaries",
    "boundary_figure",
    "choose_values",
    "curves",
    "curves_figure",
    "late_training_figure",
    "line_figure",
    "phase_diagram_figure",
    "plane_figure",
    "plot_boundary",
    "plot_line",
    "plot_loss",
    "plot_phase_diagram",
    "plot_plane",
    "plot_sharpness",
    "plot_stability_map",
    "save",
    "save_frames",
    "save_numbers",
    "stability_map_figure",
]
