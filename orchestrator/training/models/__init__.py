"""Models and tokenizers, as transformers classes, built from the `model` group of the config.

`config.py` is light; `build.py` (`build_model`, `build_tokenizer`, `check_model`) and `folder.py` (`save`)
import torch and transformers. Prompts are rendered in `training/prompts/chat_template.py`.
"""
