"""An example of a third party's kind of judge: one that asks questions."""
