"""What tests share: real repositories, tasks that misbehave, stand-ins, processes; see README.md."""
