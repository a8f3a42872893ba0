"""Texts that a model's predictions are compared over: prose, code and Chinese, written for it."""

from __future__ import annotations

PROSE = """\
The ferry to the island left at seven, and by half past six the queue already reached the chapel.
Most of the people in it carried something alive: a crate of hens, a lemon tree wrapped in wet
sacking, two grey kittens in a hat box. Old Mrs Tregear had brought her bees. She stood a little
apart from the others, holding the hive by its straps, and nobody complained about the distance.

"Will they mind the crossing?" asked the boy who sold the tickets.

"They mind everything," she said, "but they forgive quickly. It is the one thing I have learned
from them in forty-one years."

The boy wrote out two tickets, one for a passenger and one for livestock, then thought about it and
tore up the second. In those days the company charged three pence for a dog and a shilling for a
cow, and nobody had ever decided what a bee should cost. If there were thirty thousand of them, as
she claimed, then even a farthing each would have bought the ferry.

The wind turned while they waited. It came from the south-west now, warm and full of rain, and the
captain looked at the sky, then at his watch, and finally at the hive. He had made this crossing
more than nine thousand times. He knew the currents at the harbour mouth, the sandbank that moved a
few metres every winter, and the exact place where the church tower disappears behind the headland.
What he did not know was how to swim, which he considered an advantage: a man who cannot swim takes
better care of his boat.
"""

CODE = '''\
import heapq
from collections import defaultdict


class RouteError(ValueError):
    """Raised when there is no way from the start to the goal."""


def shortest_route(edges, start, goal):
    """Return (cost, stops) of the cheapest route, by Dijkstra's algorithm.

    edges: an iterable of (origin, destination, cost), each usable in one direction only.
    """
    neighbours = defaultdict(list)
    for origin, destination, cost in edges:
        if cost < 0:
            raise ValueError(f"the cost from {origin} to {destination} is negative: {cost}")
        neighbours[origin].append((destination, cost))

    best = {start: 0}
    previous = {}
    queue = [(0, start)]
    while queue:
        cost, stop = heapq.heappop(queue)
        if stop == goal:
            break
        if cost > best[stop]:
            continue  # an older entry of a stop that has been reached more cheaply since
        for destination, step in neighbours[stop]:
            total = cost + step
            if total < best.get(destination, float("inf")):
                best[destination] = total
                previous[destination] = stop
                heapq.heappush(queue, (total, destination))
    if goal not in best:
        raise RouteError(f"no route from {start} to {goal}")

    stops = [goal]
    while stops[-1] != start:
        stops.append(previous[stops[-1]])
    return best[goal], stops[::-1]


if __name__ == "__main__":
    ferries = [("harbour", "island", 4), ("island", "lighthouse", 1), ("harbour", "lighthouse", 7)]
    cost, stops = shortest_route(ferries, "harbour", "lighthouse")
    print(f"{' -> '.join(stops)}: {cost} hours")
'''

CHINESE = """\
开往小岛的渡船七点出发，可是六点半的时候，队伍已经排到了小教堂门口。大多数人手里都带着活的东西：一笼母鸡，
一棵用湿麻袋裹着的柠檬树，还有两只装在帽盒里的灰色小猫。特里格老太太带来的是她的蜜蜂。她提着蜂箱，站在离
大家稍远的地方，谁也没有因为这段距离而抱怨。

“它们会不会晕船？”卖票的男孩问道。

“它们什么都不满意，”她说，“但是很快就会原谅别人。养了四十一年的蜜蜂，我只学会了这一件事。”

男孩写好了两张票，一张给乘客，一张给牲畜，想了想，又把第二张撕掉了。那时候，船公司规定一只狗收三便士，一头
牛收一先令，可从来没有人决定过一只蜜蜂应该收多少钱。如果真像她说的那样有三万只，那么即使每只只收一点点，也
足够把整条船买下来了。

等船的时候，风向变了。现在的风从西南方吹来，又暖又湿，带着雨的气味。船长看了看天空，又看了看手表，最后看了
看那只蜂箱。这条航线他走过九千多次。他熟悉港口外的海流，知道那片沙洲每年冬天会移动几米，也知道教堂的塔尖究竟
在什么地方消失在山的后面。他唯一不会的是游泳，而他认为这是一个优点：不会游泳的人，总是更爱惜自己的船。
"""

BUILT_IN = {"prose": PROSE, "code": CODE, "Chinese": CHINESE}
