"""Usage that somebody else accounts for: published accounts, Slurm jobs, MLflow runs of other tools.

Each importer reads its format into statements (`statements.Statement`), one a line; `statements.take` books
them. Importing the same thing again changes nothing.
"""
