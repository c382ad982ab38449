"""One training run. The flow, in its nouns:

    task --prompts--> rollout workers --rollouts--> reward workers --scored groups--> buffer --batches-->
    learner ranks
                            ^                                                (staleness <= S)
                            | +------------------- weights, version v <--- weight channel
                            <---------------------+

- `records` are what travels, `stages` the seams between the parts, `loop` the only place where they meet.
- `prompts`, `rollouts`, `rewards`, `advantages`, `learner` and `weights` are the parts; none imports another.
- `cluster` puts them into Ray actors and is the only importer of Ray; `simulation` runs the same loop in
  virtual time with fake workers.
- `usage` is what a run tells the ledger; a run never knows the ledger.
"""
