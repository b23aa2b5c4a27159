"""The command `proxy-attention`, also `python -m proxy_attention.lab`."""
import sys

NEEDS = 'huggingface_hub', 'jinja2', 'markupsafe', 'pydantic', 'safetensors', 'scipy', 'timm', 'typer' # The extra `lab`


def main():
    try: from proxy_attention.lab.cli import main as command
    except ModuleNotFoundError as e:
        if e.name not in NEEDS: raise
        sys.exit(f"proxy-attention: {e.name} isn't installed. The command line and the lab need an extra: "
                 "pip install 'proxy_attention[lab]'")
    command()


if __name__ == '__main__': main()
