"""Where the next prompt comes from.

    source (a generator, files) -> questions -> split by content -> template -> prompts, in a seeded order

`load_prompts` builds it all from a task's config; `EpochPrompts` is what the loop holds.
"""
