"""The rooms behind `rescope.runner`: what signals ask for, the root scope, and one room per backend."""
