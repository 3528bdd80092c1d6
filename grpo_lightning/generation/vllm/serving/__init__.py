"""A server beside the training: started, guarded, asked, given weights, waited for when it is lost."""
