// The nodes of a component, which gradio calls `element`, and its calls to the server.
const find = (selector) => element.querySelector(selector);
const findAll = (selector) => element.querySelectorAll(selector);

function createNode(tag, attributes, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

// answer of a function of the server, which has the entry `error` if anything went wrong
function ask(serverFunction, request) {
  return serverFunction(request).catch(() => ({ error: "The server did not answer." }));
}
