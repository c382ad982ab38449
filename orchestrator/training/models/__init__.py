"""Models and tokenizers, as transformers classes, built from the `model` group of the config.

`config.py` is light; `build.py` (`build_model`, `build_tokenizer`), `prompting.py` (`render_prompt`,
`encode_text`,
`decode_responses`) and `folder.py` (`save`) import torch and transformers.
"""
