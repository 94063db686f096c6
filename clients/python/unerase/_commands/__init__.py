"""The commands of `unerase`, one module a group; `unerase._cli` puts them together."""
