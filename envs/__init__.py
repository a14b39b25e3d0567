"""Task families: one file per family, and `batch`, the batched MuJoCo simulator that the physical ones share."""

if __name__ != "metarl.envs":
    raise ImportError("write `import metarl.envs`, not `import envs`")
