"""A fastai callback that erases the evidence a network relied on, and trains it to look elsewhere."""
__version__ = "0.2.0.dev0"
