"""The cost of growth: how time and memory of whole training steps, of sampling and of the shared prefix grow."""
