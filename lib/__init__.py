"""The helper library of this artifact; notebooks only `import lib`. DESIGN: each floor imports from the ones below."""
