"""Imports usage accounted for by other systems: published figures, Slurm jobs, MLflow runs of other tools.

Each importer turns its format into statements (`statements.Statement`), one per line, and `statements.take`
books them. Repeating an import changes nothing.
"""
