"""`python -m cutline.flows` is `cutline`."""

from cutline.flows.cli.main import main

if __name__ == "__main__":
    main()
