"""`python -m proxy_attention.lab` is `proxy-attention`, where that is not on the path."""
from .cli import main

main()
