"""Faults that happen to a training: kills, damage, full disks, lost readers, signals, threads.

The quick form runs with the other tests (test_faults.py); the long form is `python -m tests.faults`. Programs are
forked from a process that has imported everything and computed nothing, so that a start takes a second.
"""
