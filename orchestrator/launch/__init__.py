"""From a validated config to a running job.

launcher       start or resume a run
prepare        check everything that can be checked before anything starts
job_runner     run a job's file; a stage of a pipeline is a run of its own
attempt        one attempt at a run: the training loop on a cluster, and everything that watches it
observer       reports progress to the run directory, the tracker and the live view
usage_shipper  ships usage events from the run's spool to the ledger
budgets        keeps a run within its budgets
outcome        what is written and printed when a run has ended
tracking       the run in the experiment tracker
webhook        budget warnings by HTTP
"""
