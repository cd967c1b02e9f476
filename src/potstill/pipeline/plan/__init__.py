"""What a run would do and cost, before anything starts (`--plan`).

`plan.py` lays it out, `cost.py` estimates time, memory and disk, from the sample of text that
`text.py` reads.
"""
