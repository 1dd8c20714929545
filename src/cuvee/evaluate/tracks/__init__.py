"""The tracks that ship: each one base, experts fine-tuned from it on real data, and the tasks to judge merges by."""
