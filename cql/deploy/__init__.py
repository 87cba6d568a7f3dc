"""From a trained policy to one that may be used. Imports all of the rest, which never imports it."""
