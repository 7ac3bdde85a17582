"""Where the linearised update of any optax optimizer turns unstable, certified from the update itself."""

from lossland.thresholds.certificate import Certificate, critical_curvatures, threshold

__all__ = ["Certificate", "critical_curvatures", "threshold"]
