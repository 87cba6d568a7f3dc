"""Draws the README's first pictures: policies learned from the same data at α = 0 and at α = 6, in about a minute."""

import gymnasium

import cql

data = cql.generate_offline_episodes(gymnasium.make("envs:SafetyCriticalGridWorld-v0"))
fit = cql.fit(data, alpha=[0, 6])
for member, q, found in zip(fit.members, fit.q, cql.evaluate(fit.policies, data)):
    exact = found["exact"]
    title = (f"α = {member.alpha:g}: return {exact['return']:.1f}, hazard {exact['hazard_probability']:.3f}; "
             f"value at the start {found['value_estimate']:.1f} estimated, {exact['discounted_value']:.1f} true")
    figure = cql.draw_policy(fit.world, q.argmax(-1), q.max(-1), dataset=data, title=title)
    figure.savefig(f"alpha_{member.alpha:g}.png", dpi=100)
