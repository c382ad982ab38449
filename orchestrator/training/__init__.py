"""One training run: the flow from prompts to new weights, and the component that performs each step.

    task --prompts--> rollout workers --rollouts--> reward workers
                            ^                             |
                            |                             | scored groups
               weights, version v                         v
               (weight channel)                        buffer  (staleness <= S)
                            |                             |
                            |                             | batches
                            +-------- learner ranks <-----+

- `records` defines the data that is passed between components, `stages` their interfaces, and `loop` is the
  only module that connects them.
- `prompts`, `rollouts`, `rewards`, `advantages`, `learner` and `weights` are the components, and none of them
  imports another.
- `cluster` runs them in Ray actors and is the only package that imports Ray; `simulation` runs the same loop
  in virtual time with fake workers.
- `usage` defines the events that a run sends to the ledger. A run never imports the ledger.
"""
