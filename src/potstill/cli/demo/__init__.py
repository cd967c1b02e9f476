"""Serve the playground: a run's models side by side, on a page of this machine.

`playground.py` asks the models, `answers.py` and `distributions.py` say what they answer, and
`server.py` serves the page that lies in `page/`.
"""
