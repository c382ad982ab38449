"""A module of scorers that ends the process that imports it."""

import os

os._exit(3)
