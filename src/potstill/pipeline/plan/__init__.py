"""Plan a run before anything starts (`--plan`): what it would do and cost.

`plan.py` writes the plan, `cost.py` estimates time, memory and disk, and `text.py` reads a sample
of the text.
"""
