"""Trials that take as long as they are given: ``python -m tests.endurance --minutes 60``.

Each does one thing over and over, in other processes where it may end them, and counts what went wrong. The table that
they end in is in docs/reliability.md; a short part of each is a test (``tests/test_endurance.py``).
"""
