"""What a training script needs beside the loop: data, checkpoints, arguments, model cards."""
