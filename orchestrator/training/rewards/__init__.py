"""How rollouts are graded: scorers in a process of their own that can be killed.

    RolloutBlock -> completions -> scorers (child process) -> outcomes -> rubric -> ScoreBlock

A grading that fails is a typed outcome with a reason (`ScoreStatus`), never a silent 0.0.
"""
