"""Meta-RL algorithms: one file each, holding its Config, its Learner and its loss."""

if __name__ != "metarl.agents":
    raise ImportError("write `import metarl.agents`, not `import agents`")
