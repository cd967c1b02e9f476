"""Handle what a person types and sees.

`entry.py` is the program: it turns errors into sentences and exit codes. `commands.py` has a
function a command, `tables.py` shows results, `terminal.py` progress. Nothing is imported before a
command needs it.
"""
