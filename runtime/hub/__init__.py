"""Models on the hub: which files of a repository are needed, and their copy on this machine."""

from .errors import in_the_users_words
from .files import Selection
from .repository import download, download_file, origin

__all__ = ["Selection", "download", "download_file", "in_the_users_words", "origin"]
