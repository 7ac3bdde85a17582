"""One module per figure: `SOURCES`, the experiments that it is drawn from, and `draw(results)`, its parts by name.

The first part is written as `<stem>.pdf`, every other as `<stem>_<part>.pdf`, each with the drawn numbers as CSV.
"""
