"""What a report or a backend looks like to other programs: one module each.

`every_eval_ever`, `in_toto` and `mlflow` write a report down; `inspect` and `pyrit` work with a backend. Each needs the
other program's package only where it says so (docs/integrations.md).
"""
