/* The page's texts in Chinese; in English they are where they are used. */

const ZH = {
  "Who answers": "由谁回答",
  "Tuned": "微调后",
  "Base": "微调前",
  "Side by side": "对比",
  "New chat": "新对话",
  "Light or dark": "浅色或深色",
  "Settings": "设置",
  "System prompt": "系统提示词",
  "Temperature": "温度",
  "Max tokens": "最多词元数",
  "Seed": "随机种子",
  "None": "无",
  "Ask it who it is.": "问问它是谁。",
  "Who are you?": "你是谁？",
  "Who made you?": "谁开发了你？",
  "Message": "输入消息",
  "Send": "发送",
  "Stop": "停止",
  "Enter sends, Shift+Enter begins a new line, Esc stops a reply.": "Enter 发送，Shift+Enter 换行，Esc 停止回答。",
  "This server asks for an API key.": "此服务需要 API 密钥。",
  "API key": "API 密钥",
  "Connect": "连接",
  "Try again": "重新回答",
  "Export chat": "导出对话",
  "Copy": "复制",
  "Copied": "已复制",
  "Edit": "编辑",
  "Cancel": "取消",
  "Ask again": "重新提问",
  "Delete this turn": "删除这一轮",
  "tokens": "个词元",
  "tokens/s": "词元/秒",
  "It answers the earlier turns first:": "先回答之前的几轮：",
  "Stopped.": "已停止。",
  "Cut off: that was the maximum of tokens.": "已截断：达到了最多词元数。",
  "Cut off: the conversation fills all that the model takes.": "已截断：对话已占满模型的上下文。",
  "The oldest turns were left out: the conversation is longer than the model takes.":
    "对话超出了模型的上下文长度，最早的几轮已略去。",
  "The server cannot be reached. Is it still running?": "无法连接服务器。它还在运行吗？",
  "The connection broke off. What had come is kept.": "连接中断，已收到的内容保留在此。",
  "This is more than the model takes, even without the turns before. Shorten your message.":
    "即使略去之前的几轮，内容仍超出模型的上下文长度。请缩短消息。",
  "The server refuses this request.": "服务器拒绝了此请求。",
  "The API key is missing or wrong.": "API 密钥缺失或有误。",
  "The server refuses requests that come this way.": "服务器拒绝以这种方式发来的请求。",
  "The server has no such model or address any more. Load the page again.": "服务器上已没有这个模型或地址。请重新加载页面。",
  "The message is too long for the server.": "消息过长，服务器不接受。",
  "The server is busy. Try again in a moment.": "服务器正忙，请稍后再试。",
  "The reply could not be made. The server's log says why.": "未能生成回答，原因见服务器日志。",
  "The server answered with an error": "服务器返回错误",
};

const chinese = navigator.language.toLowerCase().startsWith("zh");

/** A text of the page's in the language of the browser. */
export const say = (english) => (chinese && ZH[english]) || english;

/** Put what index.html says into the language of the browser. */
export function translate() {
  if (!chinese) return;
  document.documentElement.lang = "zh-CN";
  for (const element of document.body.querySelectorAll("*")) {
    const text = element.textContent;
    if (!element.children.length && text in ZH) element.textContent = ZH[text];
    for (const name of ["title", "placeholder", "aria-label"]) {
      const said = element.getAttribute(name);
      if (said in ZH) element.setAttribute(name, ZH[said]);
    }
  }
}
