"""Where the code lies; importing this takes no time."""

from pathlib import Path

CODE_FOLDER = Path(__file__).resolve().parent.parent  # holds models/, parallel/, trainer/ and launch/
