"""What everything else stands on; knows nothing about models, recipes or methods."""
