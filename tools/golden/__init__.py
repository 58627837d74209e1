"""Golden runs: what kvsweep measures, plans, reports and refuses, kept once to compare changed code with.

    python -m tools.golden keep FOLDER                    # by the code as it is
    python -m tools.golden compare FOLDER                 # by the code as it is now, with what was kept
    python -m tools.golden compare FOLDER --with OTHER    # two kept ones, nothing is run

Everything is had by the command line, as a user has it: moved files and renamed functions break no
comparison.
"""
