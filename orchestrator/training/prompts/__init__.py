"""Loads the prompts of a task and renders them for a model.

    source (a generator, files) -> questions (with the template applied) -> split by content
        -> prompts, in a seeded order -> chat template -> tokens

`load.load_prompts` builds the prompts from a task's config; the loop holds the resulting `EpochPrompts`.
`chat_template` is the only module that turns a prompt into tokens and tokens into text.
"""
