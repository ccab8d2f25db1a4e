"""The folder that holds the packages; imports nothing heavy."""

from pathlib import Path

CODE_FOLDER = Path(__file__).resolve().parent.parent  # holds models/, parallel/, trainer/ and launch/
