"""One training run: the flow from prompts to new weights, and who carries each step of it out.

    task --prompts--> rollout workers --rollouts--> reward workers
                            ^                             |
                            |                             | scored groups
               weights, version v                         v
               (weight channel)                        buffer  (staleness <= S)
                            |                             |
                            |                             | batches
                            +-------- learner ranks <-----+

- `records` are what travels, `stages` the interfaces between the parts, `loop` the only place
  where they meet.
- `prompts`, `rollouts`, `rewards`, `advantages`, `learner` and `weights` are the parts; none imports another.
- `cluster` puts them into Ray actors and is the only package that imports Ray; `simulation` runs the same
  loop in virtual time with fake workers.
- `usage` is what a run tells the ledger. A run never imports the ledger.
"""
