"""What an emulator gives away of the full model: floors, attacks by a data owner, and what has left over time."""
