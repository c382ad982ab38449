"""Accelerator-hours and money: turns usage events into reports that add up. README.md here has the glossary.

    usage events -> journal -> booking -> entries -> prices -> reports
    (spool files)   (SQL)      (pure)                (YAML)

The ledger is a bounded context: it imports nothing else of this project, and neither Ray nor torch. Its
entry point is `orchestrator.ledger.ledger.Ledger`.
"""
