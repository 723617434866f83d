"""Run the command line as ``python -m privgen``."""

from privgen.cli.main import main


main(prog_name="privgen")
