"""Carry out each kind of stage: a file per kind, called as in the YAML.

Each has what the stage checks without weights and what it does; `stage.py` chooses among them.
"""
