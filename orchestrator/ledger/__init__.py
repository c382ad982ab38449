"""Accelerator-hours and money: from usage events to reports that add up. README.md here is the glossary.

    usage events -> journal -> booking -> entries -> prices -> reports
    (spool files)   (SQL)      (pure)                (yaml)

A bounded context: it imports nothing else of this project, and nothing of Ray or torch. The way in is
`orchestrator.ledger.ledger.Ledger`.
"""
