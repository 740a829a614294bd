"""Rewards: functions, models and judges that say how good a completion is. Workers run this file: it stays empty."""
