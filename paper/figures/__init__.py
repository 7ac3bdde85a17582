"""One module per figure: `SOURCES`, the experiments that it is drawn from, and `PARTS`, a function of the results each.

The part "" is written as `<stem>.pdf`, every other as `<stem>_<part>.pdf`, each with the drawn numbers as CSV.
"""
