"""Fuzzing of every reader: damaged and hostile files made from valid ones. `python -m tests.fuzz`.

Whatever is in a file, reading it ends in a result or in one line that names the file: nothing in it is run, nothing is
written, and time and memory stay below the limits in contract.py. test_fuzz.py is the quick form for everyone, with
hypothesis; the program is the long form.
"""
